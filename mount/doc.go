// Package mount is the life of one FUSE mount: it checks the place, mounts and serves a file system there, tells
// whoever started it when the tree can be read, and takes everything away again, however the mount ends.
//
// It knows go-fuse and the kernel's mount table, and nothing of what is served.
//
// # One process, one mount
//
// A serving process has exactly one mount, and leaves exactly three traces: the mount, a state file named after its
// process id (see [State]), and the mountpoint's directory if the process made it. All three are changed only by the
// holder of one lock for each user, an flock(2) on the directory of the state files; so of two processes that want the
// same place at the same time one gets it, and the other one's error says that it is taken.
//
// A process that is killed leaves all three. Whoever comes across them next takes them away: [Serve] replaces the dead
// mount, [Unmount] removes it, and [List] forgets state files whose process and mount are both gone. A killed process that the kernel
// keeps, because one of its threads waits there for somebody who waits for the process, is gone too: the connection is aborted.
//
// # Ordinary users
//
// Who may not mount has fusermount3 do it, which is set-user-id root, and has the mount owned by the user: it sends the open
// /dev/fuse back, and takes the mount away again. Where mounts are private (mount_namespaces(7)) a process that has a mount
// namespace of its own keeps the file system alive that was mounted when it began, and an umount elsewhere does not end it:
// [Options].Ending is called all the same.
//
// # Never read your own mount
//
// A process must not use the mount that it serves: the Go runtime registers opened files with epoll(7) while it holds a
// scheduler slot, the kernel passes that on to the file system, and with all slots taken nobody is left to answer. So
// what Serve does with its own mountpoint are only system calls that the kernel answers by itself, and the test that
// the tree can be read is made by the process that waits for it (see [Daemonise]).
package mount
