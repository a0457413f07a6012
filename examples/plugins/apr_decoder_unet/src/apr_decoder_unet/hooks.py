"""What this distribution provides."""

from apr_core.plugin import Family, hookimpl


@hookimpl
def apr_families() -> list[Family]:
    """A transformer whose second half reads what the first half wrote; attention is apr-qwen2's."""
    return [
        Family(
            "unet_demo",
            "apr_decoder_unet.family:UNetDemo",
            summary="layers connected across, as in a U-Net",
            architectures=("UNetDemoForCausalLM",),
            model_types=("unet_demo",),
        )
    ]
