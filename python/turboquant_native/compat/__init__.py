"""Stand-ins for other packages, for programs that name those packages themselves."""
