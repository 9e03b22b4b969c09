package fs

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/imgfs/imgfs/imgsrc"
)

func TestJobs(t *testing.T) {
	f, _, ops := newTree(t)
	list := func() (names []string) {
		t.Helper()
		err := f.view(jobsNode).list(t.Context(), jobsNode, 0, func(e dirent) bool {
			names = append(names, e.name)
			if hit, err := f.view(jobsNode).lookup(t.Context(), jobsNode, e.name); err != nil || hit.node != e.node || hit.keep != keepNot || e.keep != keepNot {
				t.Errorf("%s: %+v, %v", e.name, hit, err)
			}
			return true
		})
		if err != nil {
			t.Error(err)
		}
		return names
	}
	if names := list(); len(names) != 0 {
		t.Errorf("jobs/ has %q", names)
	}
	before, err := f.view(jobsNode).attr(t.Context(), jobsNode, false)
	if err != nil || !before.live || before.mtime != f.started {
		t.Errorf("jobs/: %+v, %v", before, err)
	}

	ops.jobs = map[uint32]string{1: "{}\n", 12: `{"x":1}` + "\n"}
	ops.jobsTime = time.Now().Add(time.Hour)
	if names := list(); len(names) != 2 || names[0] != "1" || names[1] != "12" {
		t.Errorf("jobs/ has %q", names)
	}
	if after, _ := f.view(jobsNode).attr(t.Context(), jobsNode, false); !after.mtime.After(before.mtime) {
		t.Error("the time of jobs/ has not moved")
	}
	var from []string
	_ = f.view(jobsNode).list(t.Context(), jobsNode, 1, func(e dirent) bool { from = append(from, e.name); return true })
	if len(from) != 1 || from[0] != "12" {
		t.Errorf("after the first: %q", from)
	}

	job := makeNode(0, viewJobs, 12)
	a, err := f.view(job).attr(t.Context(), job, true)
	if err != nil || !a.live || a.mode != syscall.S_IFREG|0o644 || a.size != 8 || a.mtime != ops.jobsTime {
		t.Errorf("%+v, %v", a, err)
	}
	res, err := f.view(job).read(t.Context(), job, make([]byte, 100), 1)
	if err != nil {
		t.Fatal(err)
	}
	if text, _ := res.Bytes(nil); string(text) != `"x":1}`+"\n" {
		t.Errorf("read %q", text)
	}
	for _, name := range []string{"2", "01", "+1", "", "x", "0", "-1", "99999999999"} {
		if hit, err := f.view(jobsNode).lookup(t.Context(), jobsNode, name); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("%q: %v, %v", name, hit, err)
		}
	}
	for _, gone := range []node{makeNode(0, viewJobs, 2), makeNode(0, viewJobs, maxEntry)} {
		_, aErr := f.view(gone).attr(t.Context(), gone, false)
		_, rErr := f.view(gone).read(t.Context(), gone, nil, 0)
		if !errors.Is(aErr, syscall.ENOENT) || !errors.Is(rErr, syscall.ENOENT) {
			t.Errorf("a job that is gone: %v, %v", aErr, rErr)
		}
	}
}

func TestWriteToJob(t *testing.T) {
	f, _, ops := newTree(t)
	ops.jobs = map[uint32]string{1: "{}\n"}
	f.uid = 7
	write := func(uid uint32, text string, flags uint32) fuse.Status {
		in := fuse.WriteIn{InHeader: fuse.InHeader{NodeId: uint64(makeNode(0, viewJobs, 1)), Caller: fuse.Caller{Owner: fuse.Owner{Uid: uid}}}, WriteFlags: flags}
		n, status := f.Write(nil, &in, []byte(text))
		if status == fuse.OK && int(n) != len(text) {
			t.Errorf("%d bytes of %q were written", n, text)
		}
		return status
	}
	for _, text := range []string{"cancel\n", "cancel"} {
		if status := write(7, text, 0); status != fuse.OK {
			t.Error(status)
		}
	}
	if got := ops.lines(); len(got) != 2 || got[0] != "cancel" || ops.writes[0].Control != "jobs/1" {
		t.Errorf("%+v", ops.writes)
	}
	if status := write(8, "cancel\n", 0); status != fuse.EACCES {
		t.Errorf("another user: %v", status)
	}
	if status := write(7, "cancel\n", writeFromCache); status != fuse.EIO {
		t.Errorf("a mapping: %v", status)
	}
	if status := write(7, "\"\n", 0); status != fuse.EINVAL {
		t.Errorf("no words: %v", status)
	}
	ops.do = func(context.Context, Write) error { return imgsrc.ErrNotFound }
	if status := write(7, "cancel\n", 0); status != fuse.ENOENT {
		t.Errorf("gone: %v", status)
	}
	if status := f.Create(nil, &fuse.CreateIn{InHeader: fuse.InHeader{NodeId: uint64(jobsNode)}}, "2", nil); status != fuse.ENOENT {
		t.Errorf("> jobs/2: %v", status)
	}
	f.readOnly = true
	if status := write(7, "cancel\n", 0); status != fuse.EROFS {
		t.Errorf("read-only: %v", status)
	}
}
