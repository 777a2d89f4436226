#!/bin/sh
# Brings nvcc and the static run-time library into a manylinux_2_28 container (AlmaLinux 8), for libtq_cuda.so in the wheel.
set -eu
version=${1:-13-0}
dnf -y install dnf-plugins-core
dnf config-manager --add-repo https://developer.download.nvidia.com/compute/cuda/repos/rhel8/x86_64/cuda-rhel8.repo
dnf -y install "cuda-nvcc-$version" "cuda-cudart-devel-$version" "cuda-cccl-$version"
