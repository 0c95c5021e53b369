"""`server`: listeners that do not clash, and who may reach them."""

from gateway.config.addresses import is_loopback
from gateway.config.checking.checks import Checks
from gateway.config.redis_urls import parse_redis_url


class ServerChecks(Checks):
    def check(self, force_open: bool) -> None:
        server, path = self._file.server.item, self._file.server.path
        sound = self._sound(path, "listen", "admin", "authentication")
        if server.redis_url is not None:
            try:
                parse_redis_url(server.redis_url)
            except ValueError as error:
                self._report.error((*path, "redis_url"), f"redis_url {error}")
        if server.listen == server.admin and server.listen[1] and sound:
            self._report.value_error((*path, "admin"), "is the address of `listen` too")
        open_to_all = server.authentication == "off" and not is_loopback(server.listen[0])
        if open_to_all and not force_open and sound:
            message = "'off' lets everyone in who reaches `listen`, which is not a loopback address"
            self._report.error((*path, "authentication"), message, "--insecure allows it")
