"""The HTTP server: the API that OpenAI's clients speak, metrics, and a chat page."""
