"""What `lightning-so doctor` looks at: one file a subject, each a function that gives findings."""
