"""The labels of the agents that we make at a Paseo daemon."""

KEY_LABEL = "alameda_key"
"""The label by which an agent of ours is found again; the others are for people."""
ORIGIN = {"origin": "alameda"}
"""What tells people whose it is."""
