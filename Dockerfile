# The command and the whole workflow, with the locked versions:
#
#   docker build -t ontogeny .
#   docker run --rm -v "$PWD:/data" ontogeny run experiments/demo.yaml --cores 2
#
# Results land in results/ of the folder that is mounted at /data. For a GPU, build with
# --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 and run with --gpus all.
FROM python:3.11-slim

# compiles the training step as it is first used
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /opt/ontogeny
COPY envs/requirements.lock envs/torch.txt envs/
RUN pip install --no-cache-dir --no-deps --require-hashes -r envs/requirements.lock \
    && pip freeze --all > constraints.txt \
    && pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" -r envs/torch.txt -c constraints.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && pip check

# Snakemake and Hugging Face libraries keep caches in the home folder.
ENV HOME=/data/.home
WORKDIR /data
ENTRYPOINT ["ontogeny"]
CMD ["--help"]
