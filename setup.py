"""Packaging of keras_attr_preserve.

The top-level folder `export/` is the package `keras_attr_preserve.export`.
"""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"',
    (ROOT / "keras_attr_preserve" / "__init__.py").read_text()).group(1)

setup(
    name="keras_attr_preserve",
    version=VERSION,
    description=(
        "Compress Keras image classifiers and keep what they look at, proved "
        "on the .tflite file that ships."),
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[
        "keras_attr_preserve",
        "keras_attr_preserve.attribution",
        "keras_attr_preserve.attribution.relevance",
        "keras_attr_preserve.compression",
        "keras_attr_preserve.compression.least_squares",
        "keras_attr_preserve.evaluation",
        "keras_attr_preserve.export",
        "keras_attr_preserve.export.commands",
        "keras_attr_preserve.export.conversion",
        "keras_attr_preserve.export.diagnosis",
        "keras_attr_preserve.export.firmware",
        "keras_attr_preserve.export.runtime",
        "keras_attr_preserve.export.tensors",
        "keras_attr_preserve.export.tflite",
        "keras_attr_preserve.export.third_party",
        "keras_attr_preserve.export.verification",
        "keras_attr_preserve.models",
        "keras_attr_preserve.training",
        "keras_attr_preserve.utils",
    ],
    package_dir={"keras_attr_preserve.export": "export"},
    package_data={
        "keras_attr_preserve": ["py.typed"],
        "keras_attr_preserve.export.firmware": ["c_sources/*"],
    },
    install_requires=[
        "absl-py>=1.4",
        "ai-edge-litert>=2.1",
        "h5py>=3.10",
        "numpy>=1.26",
        # tf-explain needs OpenCV and does not say so.
        "opencv-python-headless>=4.8",
        "tensorflow>=2.21",
        "tensorflow-model-optimization>=0.8.1",
        "tf-explain>=0.3.1",
        "tf_keras>=2.21",
    ],
    extras_require={
        "examples": ["matplotlib>=3.7", "pillow>=10.1", "scikit-learn>=1.3",
                     "tqdm>=4.60"],
        "datasets": ["tensorflow-datasets>=4.9"],
        # `make peer-test` installs these and more, beside .venv.
        "peers": ["captum>=0.9", "torch>=2.3"],
        "tensorboard": ["tensorboard"],
        "test": ["pillow>=10.1", "pytest>=7", "pytest-xdist>=3", "ruff>=0.5",
                 "scikit-learn>=1.3", "scipy>=1.10", "tensorboard"],
        # Linux x86-64 only, and pre-releases only.
        "tflm": ["tflite-micro; sys_platform == 'linux' and "
                 "platform_machine == 'x86_64'"],
    },
    entry_points={
        "console_scripts": [
            "kap-inspect=keras_attr_preserve.export.commands.inspect_command:run",
            "kap-export=keras_attr_preserve.export.commands.export_command:run",
            "kap-verify=keras_attr_preserve.export.commands.verify_command:run",
        ],
    },
    classifiers=[
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
