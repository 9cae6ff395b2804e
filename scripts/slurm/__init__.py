"""Runs `make iter` on an allocation of Slurm: iter.sbatch."""
