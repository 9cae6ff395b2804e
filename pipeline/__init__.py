"""The orchestrator: configuration, plan, artifacts, execution on Ray, events. It knows a stage only by its StepSpec."""
