"""Models: a plan run by one decoder, over states that sequences keep in slots."""

from apr_core.model.model import Model, load

__all__ = ["Model", "load"]
