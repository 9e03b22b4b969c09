package userns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxMessage bounds a message, in bytes. The longest hold a manifest or the names of an image.
const maxMessage = 64 << 20

// A Conn carries messages between parent and child, each with at most one open file. Send may be called by several at once.
type Conn struct {
	sending sync.Mutex
	socket  *net.UnixConn
}

func newConn(f *os.File) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("opening the socket to a process: %w", err)
	}
	return &Conn{socket: c.(*net.UnixConn)}, nil
}

// Send sends a message, with a file if that is not nil. The file stays the caller's.
func (c *Conn) Send(message []byte, file *os.File) error {
	if len(message) > maxMessage {
		return fmt.Errorf("a message of %d bytes, more than %d", len(message), maxMessage)
	}
	var rights []byte
	if file != nil {
		rights = unix.UnixRights(int(file.Fd()))
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	// The file comes with the first byte that is sent with it, and that is the length's.
	all := append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(message)), uint32(len(message))), message...)
	n, _, err := c.socket.WriteMsgUnix(all, rights, nil)
	if err != nil {
		return err
	}
	_, err = c.socket.Write(all[n:])
	return err
}

// Receive returns the next message, and the file that came with it, nil if none did. Error: io.EOF when the other end is
// closed.
func (c *Conn) Receive() (message []byte, file *os.File, err error) {
	var length [4]byte
	rights := make([]byte, unix.CmsgSpace(4))
	n, r, _, _, err := c.socket.ReadMsgUnix(length[:], rights)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return nil, nil, err
	}
	if file, err = received(rights[:r]); err != nil {
		return nil, nil, err
	}
	size := binary.BigEndian.Uint32(length[:])
	if n == len(length) && size <= maxMessage {
		message = make([]byte, size)
		_, err = io.ReadFull(c.socket, message)
	} else {
		err = errors.New("a message begins in a way that none does")
	}
	if err != nil && file != nil {
		file.Close()
		file = nil
	}
	return message, file, err
}

func received(rights []byte) (*os.File, error) {
	if len(rights) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err == nil && len(fds) == 1 {
			return os.NewFile(uintptr(fds[0]), "received"), nil
		}
	}
	return nil, nil
}

// Close closes this end.
func (c *Conn) Close() { _ = c.socket.Close() }
