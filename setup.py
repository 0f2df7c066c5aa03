"""The distribution `shardtune` and its one command."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent

PREPARE = [
    "datasets>=5.2,<6",
    "fsspec>=2026.2",
    "gigatoken>=0.10,<0.11",
    "jinja2>=3.1.6,<4",
    "matplotlib>=3.10,<4",
    "orjson>=3.11,<4",
    "ray>=2.60,<3",
    "sentencepiece>=0.2.3,<0.3",
    "transformers>=5.23,<6",
]
S3 = ["s3fs>=2026.2"]
GCS = ["gcsfs>=2026.2"]
TRAIN = [
    "deepspeed>=0.19.8,<0.20",
    "jinja2>=3.1.6,<4",
    "matplotlib>=3.10,<4",
    "sentencepiece>=0.2.3,<0.3",
    "torch>=2.13,<3",
    "transformers>=5.23,<6",
]
LORA = ["accelerate>=1.15,<2", "peft>=0.21,<0.22"]
TRACK = ["mlflow-skinny>=3.17,<4", "tensorboard>=2.21,<3", "trackio>=0.43,<0.44", "wandb>=0.31,<0.32"]
LM_EVAL = ["lm_eval>=0.4.13,<0.5"]
SCORE = ["rouge-score>=0.1.2,<0.2", "sacrebleu>=2.6,<3"]
LAUNCH = ["rich>=14,<16"]
RAY = ["ray[default,train]>=2.60,<3"]
DEV = [
    "hypothesis>=6.130,<7",
    "moto[server]>=5.2,<6",
    "mypy>=1.18,<3",
    "pytest>=9,<10",
    "ruff>=0.14,<1",
    "types-PyYAML>=6",
]

setup(
    name="shardtune",
    version="0.1.0",
    description="Supervised fine-tuning on clusters: conversations to Arrow token stores to DeepSpeed.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *("data_tools", "sft", "sft.insight", "launcher", "launcher.backends"),
        *("configs", "configs.recipes", "configs.clusters", "slurm"),
    ],
    package_data={
        "configs.recipes": ["*.yaml"],
        "configs.clusters": ["*.yaml"],
        "slurm": ["*.sh"],
        "data_tools": ["*.jinja"],
        "sft.insight": ["*.jinja"],
    },
    install_requires=["blake3>=1,<2", "numpy>=2.2,<3", "pyarrow>=26,<27", "pydantic>=2.12,<3", "PyYAML>=6,<7"],
    extras_require={
        "prepare": PREPARE,
        "train": TRAIN,
        "launch": LAUNCH,
        "ray": [*LAUNCH, *RAY],
        "s3": S3,
        "gcs": GCS,
        "lora": LORA,
        "track": TRACK,
        "score": SCORE,
        "lm-eval": LM_EVAL,
        "dev": [*PREPARE, *TRAIN, *LORA, *TRACK, *SCORE, *LM_EVAL, *LAUNCH, *RAY, *S3, *DEV],
    },
    entry_points={"console_scripts": ["shardtune = launcher.__main__:main"]},
)
