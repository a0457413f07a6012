"""Declarations of this distribution."""

from apr_core.plugin import Family, hookimpl


@hookimpl
def apr_families() -> list[Family]:
    """Declare a family whose second half reads what the first wrote; attention is apr-qwen2's."""
    return [
        Family(
            "unet_demo",
            "apr_decoder_unet.family:UNetDemo",
            summary="layers connected across, as in a U-Net",
            architectures=("UNetDemoForCausalLM",),
            model_types=("unet_demo",),
        )
    ]
