"""The YAML schema, the plan, the run store and the runner."""
