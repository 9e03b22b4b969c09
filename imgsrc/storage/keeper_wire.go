package storage

import (
	"bytes"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"os"
	"strings"
)

// What goes to and fro is put together by hand as far as every call needs it: a gob costs more than to open a file.

// A message goes to the keeper.
type message struct {
	Number uint64
	Order  order
	Method string // of orderBegin
	Args   []byte
}

// An order is what a message wants of the call of its number.
type order byte

const (
	orderBegin    order = iota
	orderAbandon        // nobody waits for it any more
	orderComplete       // what it waits for is there, whole
)

// An answer comes from the keeper.
type answer struct {
	Number uint64
	Ready  bool // the call is under way; another answer follows
	Result []byte
	Err    *sentError

	file *os.File
}

const (
	answerReady = 1 << iota
	answerErr
)

var errShort = errors.New("a message is cut off")

func (m message) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, m.Number)
	b = append(b, byte(m.Order), byte(len(m.Method)))
	return append(append(b, m.Method...), m.Args...)
}

func decodeMessage(b []byte) (m message, err error) {
	if len(b) < 10 || len(b) < 10+int(b[9]) {
		return m, errShort
	}
	end := 10 + int(b[9])
	return message{binary.BigEndian.Uint64(b), order(b[8]), string(b[10:end]), b[end:]}, nil
}

func (a answer) encode() ([]byte, error) {
	b := binary.BigEndian.AppendUint64(nil, a.Number)
	flags := byte(0)
	if a.Ready {
		flags |= answerReady
	}
	if a.Err != nil {
		flags |= answerErr
	}
	b = binary.BigEndian.AppendUint32(append(b, flags), uint32(len(a.Result)))
	b = append(b, a.Result...)
	if a.Err == nil {
		return b, nil
	}
	text, err := encode(a.Err)
	return append(b, text...), err
}

func decodeAnswer(b []byte) (*answer, error) {
	if len(b) < 13 {
		return nil, errShort
	}
	a := &answer{Number: binary.BigEndian.Uint64(b), Ready: b[8]&answerReady != 0}
	hasErr, size := b[8]&answerErr != 0, int(binary.BigEndian.Uint32(b[9:]))
	if b = b[13:]; len(b) < size {
		return nil, errShort
	}
	a.Result, b = b[:size], b[size:]
	if !hasErr {
		return a, nil
	}
	a.Err = &sentError{}
	return a, decode(b, a.Err)
}

// openArgs are those of methodOpen.
type openArgs struct{ Dir, Name string }

func (a openArgs) encode() []byte { return []byte(a.Dir + "\x00" + a.Name) } // no path has a NUL

func decodeOpen(b []byte) (a openArgs, err error) {
	var ok bool
	if a.Dir, a.Name, ok = strings.Cut(string(b), "\x00"); !ok {
		err = errShort
	}
	return a, err
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	err := gob.NewEncoder(&b).Encode(v)
	return b.Bytes(), err
}

func decode(b []byte, v any) error { return gob.NewDecoder(bytes.NewReader(b)).Decode(v) }
