# One image for the daemon, the scheduler and the command line. Versions are pinned with hashes.
FROM python:3.12-slim

WORKDIR /opt/lockd
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY lockd lockd
COPY scheduler scheduler
COPY storage_adapters storage_adapters
COPY migrations migrations
RUN pip install --no-cache-dir --require-hashes -r constraints.txt \
 && pip install --no-cache-dir --no-deps --no-build-isolation . \
 && useradd --system --create-home --home-dir /var/lib/lockd lockd

USER lockd
WORKDIR /var/lib/lockd
EXPOSE 7420 7421 7422
CMD ["lockd", "serve"]
