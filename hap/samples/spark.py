"""The Spark engine: a session for one command, its files as views, and query results streamed as Arrow batches.

Needs the extra `.[spark]` and Java 17. Nothing here knows about samples.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ibis
import pyarrow as pa

from hap.errors import ConfigError
from hap.params import Collect

_JAVA = "install Java 17 or newer (Debian: apt-get install openjdk-17-jre-headless), or collect with `--engine duckdb`"
_LEAST_HEAP_MB = 1024  # Spark's own needs take half a gigabyte
_BATCH_ROWS = 16_384


def connect(collect: Collect, folder: Path) -> Any:
    """An Ibis connection to a Spark session of its own, in UTC.

    Args:
        folder: takes shuffle files, spilled rows and the log; the caller removes it.

    Raises:
        ConfigError: pyspark is not installed, there is no Java, or Spark did not start.
    """
    try:
        from pyspark import SparkConf, SparkContext
        from pyspark.java_gateway import launch_gateway
        from pyspark.sql import SparkSession
    except ImportError:
        raise ConfigError("collect.engine spark needs the extra: `pip install 'hap[spark]'`; or collect with `--engine duckdb`") from None
    _require_java()
    log = folder / "spark.log"
    conf = SparkConf(loadDefaults=False).setAll([*_settings(collect, folder).items()])
    try:
        with open(log, "wb") as handle:  # what the JVM says while it starts is no talk for a user
            gateway = launch_gateway(conf, popen_kwargs={"stderr": handle, "stdout": handle})
        context = SparkContext(conf=conf, gateway=gateway)
    except Exception as error:  # py4j's, Java's and pyspark's own have no common ancestor
        _end_jvm()
        why = _reason(log, error)
        raise ConfigError(f"Spark did not start with collect.spark_master {collect.spark_master!r}: {why}; {_JAVA}") from None
    if _is_local(collect):
        context.pythonExec = sys.executable  # workers need the pyarrow of this environment
    return ibis.pyspark.connect(SparkSession(context))


def disconnect(con: Any) -> None:
    """End the session and its JVM, and forget it, so that another may follow in this process."""
    con.disconnect()
    _end_jvm()


def _end_jvm() -> None:
    from pyspark import SparkContext

    gateway = SparkContext._gateway
    if gateway is not None:
        gateway.shutdown()
        gateway.proc.stdin.close()  # the JVM ends with it
        gateway.proc.wait(timeout=60)
    SparkContext._gateway = SparkContext._jvm = None


def read_parquet(con: Any, paths: list[str], name: str) -> None:
    """Make the files a view called `name`."""
    # Hadoop's own reader of S3 goes by this name; Spark has to be started with its package (hadoop-aws).
    paths = [path.replace("s3://", "s3a://", 1) if path.startswith("s3://") else path for path in paths]
    con._session.read.parquet(*[re.sub(r"([\\{}\[\]*?])", r"\\\1", path) for path in paths]).createOrReplaceTempView(name)  # it reads globs


def stream(con: Any, query: str) -> Iterator[pa.RecordBatch]:
    """The query's rows in its order, one partition at a time: neither Spark's driver nor this process holds them all."""
    frame = con._session.sql(query)

    # Executors write the batches, so that the driver hands on bytes and makes no Python object per row.
    def packed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)
            yield pa.record_batch({"batch": pa.array([sink.getvalue().to_pybytes()], pa.binary())})

    for row in frame.mapInArrow(packed, "batch binary").toLocalIterator():
        yield from pa.ipc.open_stream(bytes(row[0]))


def _settings(collect: Collect, folder: Path) -> dict[str, str]:
    number, unit = re.fullmatch(r"([0-9]+)(MB|GB)", collect.memory_limit).groups()  # type: ignore[union-attr]
    heap_mb = max(int(number) * (1024 if unit == "GB" else 1), _LEAST_HEAP_MB)
    quiet = folder / "log4j2.properties"
    quiet.write_text(
        "rootLogger.level = error\nrootLogger.appenderRef.out.ref = out\n"
        "appender.out.type = Console\nappender.out.name = out\nappender.out.target = SYSTEM_ERR\n"
        "appender.out.layout.type = PatternLayout\nappender.out.layout.pattern = %p %c{1}: %m%n%ex\n"
    )
    settings = {
        "spark.app.name": "hap collect",
        "spark.master": collect.spark_master,
        "spark.driver.memory": f"{heap_mb}m",
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={quiet.as_uri()} -Duser.timezone=UTC",
        "spark.local.dir": str(folder),
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.execution.arrow.maxRecordsPerBatch": str(_BATCH_ROWS),
        "spark.sql.legacy.parquet.nanosAsLong": "false",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    if _is_local(collect):  # all on this machine: nothing listens to others
        settings |= {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1", "spark.sql.shuffle.partitions": "16"}
    return settings


def _is_local(collect: Collect) -> bool:
    return collect.spark_master.startswith("local")


def _require_java() -> None:
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if java is None or not Path(java).exists():
        raise ConfigError(f"Spark found no Java ({f'JAVA_HOME is {home}' if home else 'no `java` on the PATH'}); {_JAVA}")
    said = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
    found = re.search(r'version "(\d+)', said)
    if found is None or int(found[1]) < 17:
        raise ConfigError(f"Spark needs Java 17 or newer, {java} is {found[1] if found else 'unknown'}; {_JAVA}")


def _reason(log: Path, error: Exception) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip() and not line.startswith("WARNING")]
    return (lines or str(error).splitlines() or [type(error).__name__])[0][:200]
