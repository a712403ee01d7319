# syntax=docker/dockerfile:1
# SGLang on CUDA with the plugin:
#
#   docker build -t sglang-cdsp .
#   docker run --gpus all --ipc host -p 30000:30000 -v ~/.cache/huggingface:/root/.cache/huggingface \
#       sglang-cdsp --model-path MODEL --dp-size 4
#
# SGLang's own image of the release that is pinned here: CUDA 13, a driver of the 580 series or newer.
# --ipc host: torch and NCCL want more shared memory than Docker gives.

ARG SGLANG_VERSION=0.5.21

FROM lmsysorg/sglang:v${SGLANG_VERSION} AS wheel
ENV PIP_BREAK_SYSTEM_PACKAGES=1
WORKDIR /src
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE CHANGELOG.md ./
COPY sglang_cdsp sglang_cdsp
COPY kernels kernels
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM lmsysorg/sglang:v${SGLANG_VERSION}
ARG SGLANG_VERSION
LABEL org.opencontainers.image.title="sglang-cdsp" \
      org.opencontainers.image.description="SGLang with chunkwise dynamic sequence parallelism" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/sglang-cdsp/sglang-cdsp" \
      org.opencontainers.image.base.name="docker.io/lmsysorg/sglang:v${SGLANG_VERSION}"
ENV PIP_BREAK_SYSTEM_PACKAGES=1
# The image has SGLang's own requirements; what the plugin adds is pinned as its tests have it.
# The plan at the end compiles the planner into the image, and fails the build if anything is missing.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python3 -m pip install --no-cache-dir \
        greenlet==3.5.6 nixl==1.5.1 platformdirs==4.14.5 rich==15.0.0 \
    && python3 -m pip install --no-cache-dir --no-deps /wheels/*.whl \
    && python3 -m sglang_cdsp plan --tokens 65536 --queue 0*8
EXPOSE 30000
ENTRYPOINT ["python3", "-m", "sglang.launch_server", "--cdsp", "--host", "0.0.0.0"]
CMD ["--help"]
