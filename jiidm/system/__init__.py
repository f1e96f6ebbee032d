"""The machine: Jittor and its set-up, processes, signals, files, errors."""
