package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// logOptions says where the log goes.
type logOptions struct {
	level string
	file  string

	min slog.Level // what level says
}

func (o *logOptions) parse() error {
	if err := o.min.UnmarshalText([]byte(o.level)); err != nil {
		return fmt.Errorf("--log-level %q: not debug, info, warn or error", o.level)
	}
	return nil
}

// open opens the log file for appending, nil if none was asked for.
func (o *logOptions) open() (*os.File, error) {
	if o.file == "" {
		return nil, nil
	}
	// Of a FIFO that nobody reads it does not wait for who does.
	f, err := os.OpenFile(o.file, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NONBLOCK, 0o600)
	if errors.Is(err, unix.ENXIO) {
		return nil, fmt.Errorf("opening the log file: nobody reads %s: %w", o.file, unix.ENXIO)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the log file: %w", err)
	}
	return f, nil
}

// logger returns the log, and makes the libraries that log in other ways use it too. The process in the background has
// the log file as its stderr, for the Go runtime's last words.
func (o *logOptions) logger(background bool) (*slog.Logger, error) {
	var out io.Writer = os.Stderr
	switch {
	case background && o.file == "":
		out = io.Discard
	case !background && o.file != "":
		f, err := o.open()
		if err != nil {
			return nil, err
		}
		out = f
	}
	log := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: o.min}))
	slog.SetDefault(log)
	logrus.SetOutput(io.Discard)
	logrus.AddHook(logrusHook{log})
	return log, nil
}

// logrusHook passes on what the containers libraries log.
type logrusHook struct{ log *slog.Logger }

// Levels implements [logrus.Hook].
func (logrusHook) Levels() []logrus.Level { return logrus.AllLevels }

// Fire implements [logrus.Hook].
func (h logrusHook) Fire(e *logrus.Entry) error {
	level := slog.LevelDebug
	switch e.Level {
	case logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel:
		level = slog.LevelError
	case logrus.WarnLevel:
		level = slog.LevelWarn
	case logrus.InfoLevel:
		level = slog.LevelInfo
	}
	args := make([]any, 0, 2*len(e.Data))
	for key, value := range e.Data {
		args = append(args, key, value)
	}
	h.log.Log(e.Context, level, e.Message, args...)
	return nil
}
