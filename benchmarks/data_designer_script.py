"""The same pictures by NVIDIA Data Designer, in an environment that has `data-designer`.

``python -m benchmarks.data_designer_script URL COUNT PARALLEL FOLDER``: URL speaks OpenAI's images
API. It stores to disk, for it knows no S3; PARALLEL is its ceiling, below which it adapts.
"""

import sys

import data_designer.config as dd  # type: ignore[import-not-found]
from data_designer.interface import DataDesigner  # type: ignore[import-not-found]


def draw_all(url: str, count: int, parallel: int, folder: str) -> None:
    """Draw so many pictures of different prompts into a folder."""
    provider = dd.ModelProvider(name="emulator", endpoint=url, api_key="none-is-needed")
    model = dd.ModelConfig(
        alias="painter",
        model="dall-e-3",  # what it takes for a diffusion model, and asks /images/generations
        provider="emulator",
        skip_health_check=True,
        inference_parameters=dd.ImageInferenceParams(max_parallel_requests=parallel),
    )
    builder = dd.DataDesignerConfigBuilder(model_configs=[model])
    builder.add_column(
        dd.SamplerColumnConfig(
            name="number", sampler_type=dd.SamplerType.UUID, params=dd.UUIDSamplerParams()
        )
    )
    builder.add_column(
        dd.ImageColumnConfig(
            name="picture", prompt="a paper fox, number {{ number }}", model_alias="painter"
        )
    )
    DataDesigner(artifact_path=folder, model_providers=[provider]).create(
        builder, num_records=count
    )


if __name__ == "__main__":
    draw_all(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
