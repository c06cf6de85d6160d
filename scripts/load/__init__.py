"""How the project's own steps slow down with what has piled up: queued runs, versions, shards."""
