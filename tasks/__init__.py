"""One module per pipeline stage, plus what the stages share."""
