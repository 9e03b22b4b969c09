package main

import (
	"errors"
	"io/fs"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/mount"
)

// The exit codes. Scripts rely on them: none ever changes its meaning.
const (
	exitOK         = 0
	exitFailed     = 1
	exitUsage      = 2
	exitSource     = 3
	exitMountpoint = 4
	exitNoFUSE     = 5
	exitDenied     = 6
)

const exitHelp = `Exit codes: 0 success, 1 failed, 2 wrong usage, 3 no such source, 4 mountpoint not usable,
5 FUSE is not available, 6 denied.`

// exitCodes says which condition is which exit code; the first that is in an error's chain counts.
var exitCodes = []struct {
	condition error
	code      int
}{
	{mount.ErrOption, exitUsage},
	{mount.ErrNotDirectory, exitMountpoint},
	{mount.ErrNoParent, exitMountpoint},
	{mount.ErrNoAccess, exitMountpoint},
	{mount.ErrNoPlace, exitMountpoint},
	{mount.ErrNotEmpty, exitMountpoint},
	{mount.ErrMounted, exitMountpoint},
	{mount.ErrForeign, exitMountpoint},
	{mount.ErrInside, exitMountpoint},
	{mount.ErrOverlap, exitMountpoint},
	{mount.ErrNotMount, exitMountpoint},
	{mount.ErrDead, exitMountpoint},
	{mount.ErrNoFUSE, exitNoFUSE},
	{mount.ErrDenied, exitDenied},
	{imgsrc.ErrDenied, exitDenied},
	{fs.ErrPermission, exitDenied},
	{imgsrc.ErrNoSource, exitSource},
}

func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	var child *mount.ChildError
	if errors.As(err, &child) {
		return child.Code
	}
	var usage *usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	for _, c := range exitCodes {
		if errors.Is(err, c.condition) {
			return c.code
		}
	}
	var source *sourceError
	if errors.As(err, &source) {
		return exitSource
	}
	return exitFailed
}
