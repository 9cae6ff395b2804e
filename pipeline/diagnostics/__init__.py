"""Is the policy still healthy? panel.py has the figures, rules.py what warns, stop.py what ends an arm."""
