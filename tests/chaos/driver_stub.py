"""What a dispatcher starts as a driver: hands its order to the zygote, which forks the attempt, and waits for its end.

Only what Python starts with is imported: two hundred drivers would else spend their time on that. An attempt dies with
its stub, as a driver does when it is killed.
"""

import ctypes
import signal
import socket
import sys

ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a driver dies with its dispatcher
order = sys.stdin.buffer.read()
with socket.socket(socket.AF_UNIX) as zygote:
    zygote.connect(sys.argv[1])
    zygote.sendall(b"drive %d\n%s" % (len(order), order))
    sys.exit(int(zygote.recv(10) or b"137"))
