"""Models: a plan run by one decoder, over states that sequences keep in slots."""
