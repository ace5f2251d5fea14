#!/usr/bin/env bash
# Creates .venv-peers, where `make peer-test` runs: what .venv has, seen through
# a path file, and other libraries of attribution. Their own demands on versions
# stay out of .venv.
set -euo pipefail
cd "$(dirname "$0")/.."

rm -rf .venv-peers
.venv/bin/python -m venv .venv-peers
of='import sysconfig; print(sysconfig.get_paths()["purelib"])'
# addsitedir, so that the checkout's own path file there is read, too.
echo "import site; site.addsitedir('$(.venv/bin/python -c "$of")')" \
  > "$(.venv-peers/bin/python -c "$of")/base.pth"
pip=(.venv-peers/bin/python -m pip --quiet --disable-pip-version-check install)

# The versions that the tests were run with.
"${pip[@]}" torch==2.13.0
# --no-deps: zennit wants torchvision for two names of classes alone, Xplique
# another TensorFlow, and the rest of what they want is there.
"${pip[@]}" --no-deps captum==0.9.0 zennit==0.5.1 xplique==2.0.2 \
  saliency==0.2.1 tf-keras-vis==0.8.7 quantus==0.6.0
"${pip[@]}" --no-deps tensorflow-probability==0.25.0 decorator==5.3.1 \
  deprecated==1.3.1 einops==0.8.2 scikit-image==0.26.0 lazy_loader==0.6 \
  networkx==3.6.1 tifffile==2026.3.3 imageio==2.38.1 cachetools==8.0.0 \
  pandas==3.1.1
# tf-keras-vis installs its own tests under that very name.
rm -rf .venv-peers/lib/python3.*/site-packages/tests
touch .venv-peers/complete
