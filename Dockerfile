# CPU by default; for a GPU: docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 -t llmpipe .
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir "torch>=2.13" --index-url "$TORCH_INDEX"

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY llmpipe llmpipe
COPY recipes recipes
RUN pip install --no-cache-dir .

RUN useradd --create-home user
USER user
WORKDIR /home/user
VOLUME /home/user/runs
ENTRYPOINT ["llmpipe"]
CMD ["quickstart", "--explain"]
