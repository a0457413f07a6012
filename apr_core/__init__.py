"""apr: from a checkpoint to a quantized, validated, running model.

What programs need is here; authors of plugins import `apr_core.plugin`, authors of servers,
trainers and commands `apr_core.runtime`. Names are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr_core.lazy import lazily

if TYPE_CHECKING:
    from apr_core.errors import AprError
    from apr_core.format import AprFile
    from apr_core.generate.sampling import SamplingParams
    from apr_core.model.model import Model, load
    from apr_core.text.tokenizer import Tokenizer
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "apr_core.errors": "AprError",
            "apr_core.format": "AprFile",
            "apr_core.generate.sampling": "SamplingParams",
            "apr_core.model.model": "Model load",
            "apr_core.text.tokenizer": "Tokenizer",
        },
    )

__version__ = "0.1.0"

__all__ = ["AprError", "AprFile", "Model", "SamplingParams", "Tokenizer", "__version__", "load"]
