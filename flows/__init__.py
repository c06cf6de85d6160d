"""What runs when: Prefect flows, each a list of calls into `tasks`."""
