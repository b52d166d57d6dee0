"""Lists the tasks in a Linux guest's core file: tasks.py CORE INIT_TASK BTF_BEGIN BTF_END, the last three hexadecimal.

drgn reads the file, and walks the kernel's list. Where a task's members are is what the kernel says of its own types
(Documentation/bpf/btf.rst), since a guest's image comes without debug information.
"""

import struct
import sys

import drgn
from drgn.helpers.linux.list import list_for_each_entry

# What follows the three words of each type, by its kind: so many bytes, and so many for each member.
MORE = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12), 17: (4, 0), 19: (0, 12)}
STRUCT = 4


def members_of(btf, wanted):
    """The size of structure `wanted`, and its members: name and place in bits."""
    head, types, length, strings = struct.unpack_from("<4xIIII", btf)
    text = lambda at: btf[head + strings + at : btf.index(b"\0", head + strings + at)].decode()
    at = head + types
    while at < head + types + length:
        name, info, size = struct.unpack_from("<III", btf, at)
        kind, count = info >> 24 & 0x1F, info & 0xFFFF
        if kind == STRUCT and text(name) == wanted:
            own = [struct.unpack_from("<III", btf, at + 12 + 12 * n) for n in range(count)]
            return size, {text(name): place & 0xFFFFFF for name, _, place in own}
        fixed, each = MORE.get(kind, (0, 0))
        at += 12 + fixed + each * count


core = drgn.Program()
core.set_core_dump(sys.argv[1])
first, begin, end = (int(word, 16) for word in sys.argv[2:])
size, place = members_of(core.read(begin, end - begin), "task_struct")
pointer = lambda: core.pointer_type(links)
links = core.struct_type(
    "list_head", 16, (drgn.TypeMember(pointer, "next"), drgn.TypeMember(pointer, "prev", 64))
)
members = {
    "pid": core.int_type("int", 4, True),
    "comm": core.array_type(core.int_type("char", 1, True), 16),
    "tasks": links,
}
task_struct = core.struct_type(
    "task_struct", size, tuple(drgn.TypeMember(kind, name, place[name]) for name, kind in members.items())
)
init_task = drgn.Object(core, task_struct, address=first)
print(init_task.pid.value_(), init_task.comm.string_().decode())
for task in list_for_each_entry(task_struct, init_task.tasks.address_of_(), "tasks"):
    print(task.pid.value_(), task.comm.string_().decode())
