"""What a server did, drawn from its plan log: on a terminal, as a trace, as a picture."""
