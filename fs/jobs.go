package fs

import (
	"context"
	"strconv"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// jobsNode is jobs/: entry 0 of its view.
var jobsNode = makeNode(0, viewJobs, 0)

var jobsIno = topIno(topJobs)

// jobsView is jobs/ and its files; entry: the job's number.
//
// A job changes while it is read. Its text is made anew when its attributes are asked for, which the kernel does before it
// reads, and stays the same for the read that follows: a reader gets as many bytes as stat said.
type jobsView struct{ f *FS }

func (v jobsView) attr(_ context.Context, n node, _ bool) (attr, error) {
	if n == jobsNode {
		_, changed := v.f.ops.Jobs()
		return dirAttr(jobsIno, latest(changed, v.f.started), true), nil
	}
	text, changed, ok := v.f.ops.Job(n.entry(), true)
	if !ok {
		return attr{}, syscall.ENOENT
	}
	a := fileAttr(jobsIno.nth(uint64(n.entry())), int64(len(text)), changed)
	if !v.f.readOnly {
		a.mode |= 0o200
	}
	a.control = true
	return a.asLive(), nil
}

func (v jobsView) lookup(_ context.Context, dir node, name string) (found, error) {
	if dir != jobsNode {
		return found{}, syscall.ENOTDIR
	}
	number, err := strconv.ParseUint(name, 10, entryBits)
	if err != nil || strconv.FormatUint(number, 10) != name {
		return found{}, syscall.ENOENT
	}
	if _, _, ok := v.f.ops.Job(uint32(number), false); !ok {
		return found{}, syscall.ENOENT
	}
	return found{node: makeNode(0, viewJobs, uint32(number)), keep: keepNot}, nil
}

func (v jobsView) list(_ context.Context, dir node, from uint64, emit func(dirent) bool) error {
	if dir != jobsNode {
		return syscall.ENOTDIR
	}
	numbers, _ := v.f.ops.Jobs()
	for _, number := range numbers {
		if uint64(number) <= from || number > maxEntry {
			continue
		}
		e := dirent{
			name: strconv.FormatUint(uint64(number), 10), node: makeNode(0, viewJobs, number), ino: jobsIno.nth(uint64(number)),
			mode: syscall.S_IFREG, cookie: uint64(number), keep: keepNot,
		}
		if !emit(e) {
			return nil
		}
	}
	return nil
}

func (v jobsView) read(_ context.Context, n node, dest []byte, off int64) (fuse.ReadResult, error) {
	if n == jobsNode {
		return nil, syscall.EISDIR
	}
	text, _, ok := v.f.ops.Job(n.entry(), false)
	if !ok {
		return nil, syscall.ENOENT
	}
	return readBytes(text, dest, off), nil
}

func (jobsView) readlink(context.Context, node) ([]byte, error) { return nil, syscall.EINVAL }

// isJob says whether a node is a file in jobs/.
func isJob(n node) bool { return n.image() == 0 && n.view() == viewJobs && n != jobsNode }

// writeJob carries out what is written to a job's file. It waits for nothing: the kernel holds the file meanwhile.
func (f *FS) writeJob(n node, who fuse.Caller, data []byte) error {
	lines, err := splitLines(string(data))
	return f.ops.WriteJob(n.entry(), Write{Control: "jobs", Lines: lines, UID: who.Uid, PID: who.Pid, Err: err})
}
