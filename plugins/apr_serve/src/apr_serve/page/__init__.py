"""The web pages: chat, status and API documentation."""
