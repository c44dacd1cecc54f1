"""What the stream path costs, as ratios to a bare ASGI application that is measured in the same run.

Both run in processes of their own on the same uvicorn; this process reads. It knows the service by
`app.main`, by the `Backend` protocol and over HTTP, and nothing of its inside.
"""
