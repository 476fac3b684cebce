"""Pods: compiled for without one, trained on with one."""
