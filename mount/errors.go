package mount

import "errors"

// The conditions that this package reports. They are wrapped in errors that name the place and what to do about it.
var (
	// ErrNotDirectory: the mountpoint is there, and is not a directory.
	ErrNotDirectory = errors.New("not a directory")
	// ErrNoParent: the mountpoint is missing, and so is the directory that it would be made in.
	ErrNoParent = errors.New("no such directory")
	// ErrNoAccess: the user may not make the mountpoint, or may not mount there.
	ErrNoAccess = errors.New("no permission for the mountpoint")
	// ErrNoPlace: the mountpoint is missing, and lies where no directories can be made, whoever asks.
	ErrNoPlace = errors.New("no directory can be made there")
	// ErrNotEmpty: there are files in the mountpoint, which the mount would hide.
	ErrNotEmpty = errors.New("the directory is not empty")
	// ErrMounted: imgfs serves there already.
	ErrMounted = errors.New("already mounted")
	// ErrForeign: something that is not imgfs is mounted there.
	ErrForeign = errors.New("not an imgfs mount")
	// ErrOverlap: the mountpoint lies in a directory that the mount itself needs, or the other way round.
	ErrOverlap = errors.New("the mountpoint overlaps what the mount reads")
	// ErrInside: the mountpoint lies in another mount of imgfs.
	ErrInside = errors.New("it lies in an imgfs mount")
	// ErrNotMount: nothing is mounted there.
	ErrNotMount = errors.New("not a mount")
	// ErrDead: the process that served the mount is gone.
	ErrDead = errors.New("the process that served it is gone")
	// ErrBusy: files of the mount are in use.
	ErrBusy = errors.New("busy")
	// ErrServing: the mount is gone, but the process that served it is not.
	ErrServing = errors.New("the serving process has not ended")
	// ErrNoFUSE: this machine, container or user cannot mount FUSE file systems.
	ErrNoFUSE = errors.New("FUSE is not available")
	// ErrDenied: the system's administrator does not allow what was asked for.
	ErrDenied = errors.New("denied")
	// ErrOption: a word after -o that is none, or is incomplete.
	ErrOption = errors.New("bad mount option")
)
