"""The command line: a file a command; each parses, calls fastvim, prints."""
