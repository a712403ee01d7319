"""The side that faces decode servers: their contact, their rooms, their messages."""
