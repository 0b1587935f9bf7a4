"""Other tools: PEFT's benchmark, trackers, weight export, notebooks."""
