"""What each command does, one file a command, without click: a function with typed arguments that anyone may call."""
