// Package userns runs a part of this program as root of a user namespace of its own, for what an ordinary user may do
// only there: read the files of his containers' users, and give files to them.
//
// # How
//
// A user of containers has, beside his own id, a range of subordinate ids (/etc/subuid, /etc/subgid). In a user namespace
// with the mapping
//
//	0 -> the user's own id    1, 2, 3... -> his subordinate ids
//
// he is root over all of them, and over nothing else. It is the mapping that podman and buildah work in, so that files in
// a store mean the same to them and to us. podman keeps one such namespace alive (by its pause process, pause.pid), because
// mounts in it are to be seen by its next command. Nothing of the kind is needed here: ids depend on the mapping alone, not
// on which namespace has it.
//
// The program must be a child, because a process with threads, as every Go program is, cannot enter a user namespace by
// itself, and the usual way out is C code that runs before them. [Start] has it without:
//
//  1. This program is started again with clone(2)'s CLONE_NEWUSER. It has no ids there yet, and waits.
//  2. Its parent gives it the mapping, by newuidmap(1) and newgidmap(1), which are set-user-id root and look into
//     /etc/subuid; then it says so.
//  3. The child starts itself once more in its place (execve(2)): now it has the id 0 there, and with it all capabilities.
//
// Where there are no subordinate ids, or no newuidmap, the namespace has the user's own id alone, as podman has it then:
// see [Child.Alone].
//
// The two talk over a socket ([Conn]), which also carries open files. The child ends when its parent's end is closed, also
// by a kill.
package userns
