"""Request and response bodies, a noun a file: strangers' JSON into the domain's values, and back.

A request field that is absent or null is "not said", but in a PATCH null is refused. The bounds are the
contract's own; an operator may have set lower ones, which the engine knows.
"""
