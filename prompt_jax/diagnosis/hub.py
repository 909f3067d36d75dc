"""Access to the Hugging Face Hub. Never fails, never waits long, and shows no token or password."""

import dataclasses
import re
import threading

REQUEST_SECONDS, ALL_SECONDS = 3.0, 5.0


@dataclasses.dataclass
class HubAccess:
    """The state of the access to the Hub.

    Attributes:
      endpoint: its address.
      offline: whether an environment variable forbids requests.
      token: whether there is one; None if that is not known in time.
      reachable: whether it answers; None without a request.
      reason: why it does not answer.
    """

    endpoint: str
    offline: bool
    token: bool | None = None
    reachable: bool | None = None
    reason: str = ""


class HubProbe:
    """Asks the Hub in a thread, since name lookups have no time limit of their own."""

    def __init__(self) -> None:
        self._thread = threading.Thread(target=self._ask, daemon=True)
        try:
            from huggingface_hub import constants
        except ImportError as error:
            reason = f"huggingface_hub cannot be imported: {error}"
            self._access = HubAccess("https://huggingface.co", False, reachable=False, reason=reason)
            return
        self._endpoint = constants.ENDPOINT
        self._access = HubAccess(_without_password(self._endpoint), bool(constants.HF_HUB_OFFLINE))
        self._thread.start()

    def result(self, timeout: float = ALL_SECONDS) -> HubAccess:
        """Wait for the answer and return what is known by then."""
        if self._thread.is_alive():
            self._thread.join(timeout)
        access = dataclasses.replace(self._access)  # the thread may still write to the other
        if access.reachable is None and not access.offline:
            access.reachable, access.reason = False, f"no answer in {timeout:g} s"
        return access

    def _ask(self) -> None:
        from huggingface_hub import get_token
        from huggingface_hub.utils import get_session

        try:
            self._access.token = bool(get_token())
        except Exception:
            self._access.token = None
        if self._access.offline:
            return
        try:
            get_session().head(self._endpoint, timeout=REQUEST_SECONDS)  # any answer will do
            self._access.reachable = True
        except Exception as error:
            lines = str(error).strip().splitlines()
            self._access.reason = _without_password(": ".join([type(error).__name__, *lines[:1]]))
            self._access.reachable = False


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)
