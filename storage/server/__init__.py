"""The storage server: accepts connections and answers requests from one directory of shares and head logs."""

from storage.server.composition import RunningServer, run_server
from storage.server.config import ServerConfig, ServerStatistics

__all__ = ["RunningServer", "ServerConfig", "ServerStatistics", "run_server"]
