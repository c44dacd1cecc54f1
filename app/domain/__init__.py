"""What Alameda talks about: sessions, turns, events, permissions. Pure: no I/O, no framework."""
