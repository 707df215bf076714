"""The configuration of mlproj: Hydra groups, installed as the package `mlproj.conf`."""
