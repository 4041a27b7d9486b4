# CPU:  docker build --tag robustkit --build-arg TORCH_INDEX=URL .
#       URL is PyTorch's own index of CPU builds; without it, pip installs the much larger CUDA build.
# CUDA: docker build --tag robustkit --build-arg BASE=pytorch/pytorch:2.6.0-cuda12.4-cudnn9-runtime .
#       Any image with Python 3.10 to 3.13 will do; a PyTorch that it holds is kept.
# Run:  docker run --rm --gpus all --volume "$PWD:/work" robustkit evaluate model.py:make
#       --gpus only with CUDA; --user "$(id -u):$(id -g)" where the results must be yours.
ARG BASE=python:3.11-slim

FROM python:3.11-slim AS build
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM ${BASE}
ARG EXTRAS=report
ARG TORCH_INDEX=
COPY --from=build /wheels /wheels
RUN python3 -m venv --system-site-packages /opt/robustkit \
    && if [ -n "$TORCH_INDEX" ]; then /opt/robustkit/bin/pip install --no-cache-dir --index-url "$TORCH_INDEX" torch; fi \
    && wheel=$(echo /wheels/*.whl) \
    && /opt/robustkit/bin/pip install --no-cache-dir "${wheel}[${EXTRAS}]" \
    && useradd --create-home robustkit \
    && install --directory --owner=robustkit /work
ENV PATH=/opt/robustkit/bin:$PATH
USER robustkit
WORKDIR /work
ENTRYPOINT ["robustkit"]
CMD ["evaluate"]
