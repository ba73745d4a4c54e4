package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"fmt"
	"io/ioutil"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// machines are processes: each runs its user-data in a folder of its own.
type machines struct {
	client *vim25.Client
	folder string

	mutex   sync.Mutex
	running map[string]*running
}

type running struct {
	process *exec.Cmd
	ended   chan struct{}
}

func (m *machines) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "Machines", Value: "machines"}
}

func (m *machines) PutObject(mo.Reference) {}

// UpdateObject hears of every change; whoever makes it holds the object.
func (m *machines) UpdateObject(object mo.Reference, changes []types.PropertyChange) {
	for _, change := range changes {
		if object.Reference().Type != "VirtualMachine" || change.Name != "runtime.powerState" {
			continue
		}
		reference := object.Reference()
		switch change.Val {
		case types.VirtualMachinePowerStatePoweredOn:
			settings := map[string]string{}
			machine := simulator.Map.Get(reference).(*simulator.VirtualMachine)
			for _, one := range machine.Config.ExtraConfig {
				option := one.GetOptionValue()
				settings[option.Key], _ = option.Value.(string)
			}
			if err := m.boot(reference, settings); err != nil {
				log.Printf("%s does not boot: %s", reference.Value, err)
			}
		case types.VirtualMachinePowerStatePoweredOff:
			m.kill(reference)
		}
	}
}

func (m *machines) RemoveObject(reference types.ManagedObjectReference) {
	if reference.Type == "VirtualMachine" {
		m.kill(reference)
	}
}

// boot does what cloud-init does with the variables of a machine.
func (m *machines) boot(reference types.ManagedObjectReference, settings map[string]string) error {
	folder := filepath.Join(m.folder, reference.Value)
	script := filepath.Join(folder, "user-data")
	if _, err := os.Stat(script); err == nil {
		// It was on before, and has nothing to do.
		go m.off(reference)
		return nil
	}
	data, err := base64.StdEncoding.DecodeString(settings["guestinfo.userdata"])
	if err != nil || len(data) == 0 {
		return err
	}
	if settings["guestinfo.userdata.encoding"] == "gzip+base64" {
		reader, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return err
		}
		if data, err = ioutil.ReadAll(reader); err != nil {
			return err
		}
	}
	tools := filepath.Join(folder, "bin")
	if err := os.MkdirAll(tools, 0o700); err != nil {
		return err
	}
	files := map[string]string{
		script:                           string(data),
		filepath.Join(tools, "shutdown"): fmt.Sprintf("#!/bin/sh\n[ \"$2\" != now ] || echo off >%s/off\n", folder),
		filepath.Join(tools, "vmtoolsd"): fmt.Sprintf("#!/bin/sh\n[ \"$1\" = --cmd ] && exec curl --silent --show-error "+
			"--fail --unix-socket %s.sock --data-binary \"$2\" http://hypervisor/%s\n", m.folder, reference.Value),
	}
	for name, text := range files {
		if err := ioutil.WriteFile(name, []byte(text), 0o700); err != nil {
			return err
		}
	}
	console, err := os.Create(filepath.Join(folder, "console"))
	if err != nil {
		return err
	}
	// Whatever the machine has started ends with it.
	process := exec.Command("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", script)
	process.Dir = folder
	process.Env = []string{"PATH=" + tools + ":/usr/local/bin:/usr/bin:/bin", "TMPDIR=" + folder}
	process.Stdout, process.Stderr = console, console
	process.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := process.Start(); err != nil {
		return err
	}
	one := &running{process: process, ended: make(chan struct{})}
	m.mutex.Lock()
	m.running[reference.Value] = one
	m.mutex.Unlock()
	go func() {
		_ = process.Wait()
		close(one.ended)
		if _, err := os.Stat(filepath.Join(folder, "off")); err == nil {
			m.off(reference)
		}
	}()
	return nil
}

func (m *machines) kill(reference types.ManagedObjectReference) {
	m.mutex.Lock()
	one := m.running[reference.Value]
	delete(m.running, reference.Value)
	m.mutex.Unlock()
	if one != nil {
		_ = syscall.Kill(-one.process.Process.Pid, syscall.SIGKILL)
		<-one.ended
	}
}

func (m *machines) off(reference types.ManagedObjectReference) {
	_, _ = methods.PowerOffVM_Task(context.Background(), m.client, &types.PowerOffVM_Task{This: reference})
}

// listen hears what the tools of machines say.
func (m *machines) listen() error {
	listener, err := net.Listen("unix", m.folder+".sock")
	if err != nil {
		return err
	}
	go func() {
		log.Fatal(http.Serve(listener, http.HandlerFunc(m.told)))
	}()
	return nil
}

func (m *machines) told(w http.ResponseWriter, r *http.Request) {
	body, _ := ioutil.ReadAll(r.Body)
	words := strings.SplitN(string(body), " ", 3)
	reference := types.ManagedObjectReference{Type: "VirtualMachine", Value: strings.TrimPrefix(r.URL.Path, "/")}
	if len(words) != 3 || words[0] != "info-set" || !strings.HasPrefix(words[1], "guestinfo.") {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	set := types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{
		&types.OptionValue{Key: words[1], Value: words[2]},
	}}
	request := &types.ReconfigVM_Task{This: reference, Spec: set}
	if _, err := methods.ReconfigVM_Task(context.Background(), m.client, request); err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	if machine, ok := simulator.Map.Get(reference).(*simulator.VirtualMachine); ok {
		changed(machine, version(machine)+"+")
	}
}
