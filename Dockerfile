# docker build -t attention-cyclegan .
# docker run -p 7860:7860 attention-cyclegan    # the page to try generators: http://localhost:7860
# docker run -v "$PWD/mydata:/app/mydata" -v "$PWD/checkpoints:/app/checkpoints" attention-cyclegan \
#     python train.py --dataroot mydata --name mine
#
# For NVIDIA GPUs, to run with --gpus all --ipc host:
# docker build --build-arg BASE=pytorch/pytorch:2.8.0-cuda12.8-cudnn9-devel -t attention-cyclegan .
# (-runtime is smaller, without the compiler that --compile needs)
ARG BASE=python:3.11-slim
FROM ${BASE}
WORKDIR /app
COPY pyproject.toml README.md ./
# The index has PyTorch without CUDA; a base with PyTorch keeps its own. The Makefile says why setuptools comes first.
RUN pip install --no-cache-dir "setuptools>=77,<81" \
    && pip install --no-cache-dir --no-build-isolation --extra-index-url https://download.pytorch.org/whl/cpu \
        ".[formats,metrics,export,hub]"
COPY . .
EXPOSE 7860
CMD ["python", "-m", "scripts.demo", "--host", "0.0.0.0"]
