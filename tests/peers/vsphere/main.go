// A vCenter on this machine: govmomi's simulator, and beside it what it leaves out and a driver depends on.
//
//	vcenter PORT FOLDER USER PASSWORD
//
// FOLDER holds server.pem and server.key, and gets what the machines write.
//
//   - Machines work: user-data is run as cloud-init runs it, by a process that is the machine; `shutdown` there ends it, and
//     its tools set variables of the machine. One that is switched on again ends at once.
//   - Requests have the elements that VMware's published interface knows of, in its order, and no others.
//   - Nobody asks for anything without a session but who logs in.
//   - A folder holds no two machines of one name.
//   - Listings come in pages of four.
//   - Without DRS a cluster chooses no host for a machine.
//   - Whoever changes a machine that somebody else has changed meanwhile is refused, where it says what it had seen.
//
// GET /peer/… tells and steers: `requests`, `fault?method=NAME&is=FAULT` and `deaf?method=NAME` (what becomes of the next
// request: its task fails, or it is done and nobody hears of it), `forget` (all sessions end), `drs?is=off` (of all
// clusters), `lack?privilege=NAME` (whoever asks is told that it is not granted).
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io/ioutil"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
	vimxml "github.com/vmware/govmomi/vim25/xml"
)

const cookie = "vmware_soap_session"

// asked is what of a request somebody looks at.
type asked struct {
	XMLName xml.Name
	This    struct {
		Type string `xml:"type,attr"`
		ID   string `xml:",chardata"`
	} `xml:"_this"`
	Folder   string   `xml:"folder"`
	Host     string   `xml:"spec>location>host"`
	Name     string   `xml:"name"`
	Sessions []string `xml:"sessionId"`
	Version  string   `xml:"spec>changeVersion"`
	Token    string   `xml:"token"`
}

func (a *asked) this() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: a.This.Type, Value: a.This.ID}
}

type vcenter struct {
	simulator http.Handler
	// Held while something is changed.
	changing sync.Mutex

	mutex    sync.Mutex
	sessions map[string]bool
	requests []string
	faults   map[string]string
	deaf     map[string]bool
	lacking  string
	pages    map[string][]string
	versions int
}

func (v *vcenter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/peer/") {
		v.steered(w, r)
		return
	}
	if r.URL.Path != "/sdk" || r.Method != http.MethodPost {
		v.simulator.ServeHTTP(w, r)
		return
	}
	body, err := ioutil.ReadAll(r.Body)
	var envelope struct {
		Body struct {
			Inner []byte `xml:",innerxml"`
		}
	}
	request := new(asked)
	if err == nil {
		err = xml.Unmarshal(body, &envelope)
	}
	if err == nil {
		err = xml.Unmarshal(envelope.Body.Inner, request)
	}
	if err == nil && strings.HasPrefix(r.UserAgent(), "tidegate/") {
		err = published(body)
	}
	if err != nil {
		log.Printf("%s: %s", request.XMLName.Local, err)
	}
	if err != nil || !strings.HasPrefix(strings.Trim(r.Header.Get("SOAPAction"), `"`), "urn:vim25/") {
		fault(w, "InvalidRequest")
		return
	}
	method := request.XMLName.Local
	session, _ := r.Cookie(cookie)
	v.mutex.Lock()
	v.requests = append(v.requests, method)
	known := session != nil && v.sessions[session.Value]
	refused := v.faults[method]
	deaf := v.deaf[method]
	delete(v.faults, method)
	delete(v.deaf, method)
	v.mutex.Unlock()
	if !known && method != "RetrieveServiceContent" && method != "Login" {
		fault(w, "NotAuthenticated")
		return
	}
	if strings.HasSuffix(method, "_Task") {
		v.changing.Lock()
		defer v.changing.Unlock()
	}
	if refused == "" {
		refused = v.refusal(request)
	}
	if refused != "" {
		failing(w, request, refused)
		return
	}
	r.Body = ioutil.NopCloser(bytes.NewReader(body))
	answer := httptest.NewRecorder()
	if method == "ContinueRetrievePropertiesEx" {
		v.goOn(request, answer)
	} else {
		v.simulator.ServeHTTP(answer, r)
	}
	v.after(request, session, answer)
	if deaf {
		panic(http.ErrAbortHandler)
	}
	for name, values := range answer.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes())
}

// published is the difference between a request and the same as VMware's own client would write it. The simulator itself
// reads elements in any order, and those that it does not know of not at all.
func published(body []byte) error {
	read, err := simulator.UnmarshalBody(types.TypeFunc(), body)
	if err != nil {
		return err
	}
	var written bytes.Buffer
	if err := vimxml.NewEncoder(&written).Encode(read.Body); err != nil {
		return err
	}
	wanted, asked := elements(written.Bytes()), elements(body)
	// Envelope and body, and the request, which is called as its type here.
	if len(asked) < 3 || strings.Join(asked[3:], " ") != strings.Join(wanted[1:], " ") {
		return fmt.Errorf("asked with %v, and published are %v", asked, wanted)
	}
	return nil
}

// elements are the names of all elements of a document, in their order.
func elements(document []byte) []string {
	var names []string
	for decoder := xml.NewDecoder(bytes.NewReader(document)); ; {
		token, err := decoder.Token()
		if err != nil {
			return names
		}
		if start, ok := token.(xml.StartElement); ok {
			names = append(names, start.Name.Local)
		}
	}
}

// refusal is the fault that a vCenter answers and its simulator does not.
func (v *vcenter) refusal(request *asked) string {
	switch request.XMLName.Local {
	case "CloneVM_Task":
		folder, ok := simulator.Map.Get(types.ManagedObjectReference{Type: "Folder", Value: request.Folder}).(*simulator.Folder)
		if ok && simulator.Map.FindByName(request.Name, folder.ChildEntity) != nil {
			return "DuplicateName"
		}
		cluster := simulator.Map.Any("ClusterComputeResource").(*simulator.ClusterComputeResource)
		chooses := cluster.ConfigurationEx.(*types.ClusterConfigInfoEx).DrsConfig.Enabled
		if chooses != nil && !*chooses && request.Host == "" {
			return "InvalidArgument"
		}
	case "ReconfigVM_Task":
		machine, ok := simulator.Map.Get(request.this()).(*simulator.VirtualMachine)
		if ok && request.Version != "" && version(machine) != request.Version {
			return "ConcurrentAccess"
		}
	}
	return ""
}

// after keeps in mind what a request has changed.
func (v *vcenter) after(request *asked, session *http.Cookie, answer *httptest.ResponseRecorder) {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	switch request.XMLName.Local {
	case "Login":
		for _, one := range answer.Result().Cookies() {
			if one.Name == cookie {
				v.sessions[one.Value] = true
			}
		}
	case "Logout":
		delete(v.sessions, session.Value)
	case "TerminateSession":
		for _, one := range request.Sessions {
			delete(v.sessions, one)
		}
	case "RetrievePropertiesEx":
		objects := strings.Split(answer.Body.String(), "<objects>")
		if last := len(objects) - 1; last > page {
			objects[last] = objects[last][:strings.LastIndex(objects[last], "</returnval>")]
			v.answerPage(request, objects[1:], answer)
		}
	case "HasPrivilegeOnEntities":
		lack := "<privId>" + v.lacking + "</privId><isGranted>"
		told := strings.Replace(answer.Body.String(), lack+"true", lack+"false", -1)
		answer.Body = bytes.NewBufferString(told)
	case "CloneVM_Task", "ReconfigVM_Task":
		v.versions++
		for _, one := range simulator.Map.All("VirtualMachine") {
			machine := one.(*simulator.VirtualMachine)
			if machine.Self == request.this() || version(machine) == "" {
				changed(machine, fmt.Sprintf("change-%d", v.versions))
			}
		}
	}
}

// page is how many objects are told at once.
const page = 4

// goOn answers with the next page of a listing.
func (v *vcenter) goOn(request *asked, answer *httptest.ResponseRecorder) {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	objects := v.pages[request.Token]
	delete(v.pages, request.Token)
	if objects == nil {
		fault(answer, "InvalidArgument")
		return
	}
	v.answerPage(request, objects, answer)
}

func (v *vcenter) answerPage(request *asked, objects []string, answer *httptest.ResponseRecorder) {
	token, now := "", objects
	if len(objects) > page {
		v.versions++
		name := fmt.Sprintf("page-%d", v.versions)
		now, v.pages[name] = objects[:page], objects[page:]
		token = "<token>" + name + "</token>"
	}
	told := token + "<objects>" + strings.Join(now, "<objects>")
	method := request.XMLName.Local
	body := fmt.Sprintf(`<%sResponse xmlns="urn:vim25"><returnval>%s</returnval></%sResponse>`, method, told, method)
	answer.Body = bytes.NewBufferString(fmt.Sprintf(envelope, body))
}

// version is that of a machine's settings.
func version(machine *simulator.VirtualMachine) (version string) {
	simulator.Map.WithLock(machine, func() {
		version = machine.Config.ChangeVersion
	})
	return version
}

// changed gives a machine's settings a new version, and each of them one value, or none where that is empty: the simulator
// keeps all that it ever had.
func changed(machine *simulator.VirtualMachine, version string) {
	simulator.Map.WithLock(machine, func() {
		last, order := map[string]types.BaseOptionValue{}, []string{}
		for _, one := range machine.Config.ExtraConfig {
			key := one.GetOptionValue().Key
			if _, there := last[key]; !there {
				order = append(order, key)
			}
			last[key] = one
		}
		settings := make([]types.BaseOptionValue, 0, len(order))
		for _, key := range order {
			if last[key].GetOptionValue().Value != "" {
				settings = append(settings, last[key])
			}
		}
		simulator.Map.Update(machine, []types.PropertyChange{
			{Name: "config.changeVersion", Val: version},
			{Name: "config.extraConfig", Val: settings},
		})
	})
}

const envelope = `<?xml version="1.0" encoding="UTF-8"?><soapenv:Envelope ` +
	`xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">` +
	`<soapenv:Body>%s</soapenv:Body></soapenv:Envelope>`

func fault(w http.ResponseWriter, name string) {
	w.WriteHeader(http.StatusInternalServerError)
	body := fmt.Sprintf(`<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>%s.</faultstring><detail>`+
		`<%sFault xmlns="urn:vim25" xsi:type="%s"/></detail></soapenv:Fault>`, name, name, name)
	fmt.Fprintf(w, envelope, body)
}

// failing answers with a task that has failed.
func failing(w http.ResponseWriter, request *asked, name string) {
	kind, ok := types.TypeFunc()(name)
	if !ok {
		fault(w, name)
		return
	}
	why := reflect.New(kind).Interface().(types.BaseMethodFault)
	object := simulator.Map.Get(request.this())
	method := request.XMLName.Local
	task := simulator.CreateTask(object, method, func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		return nil, why
	})
	body := `<%sResponse xmlns="urn:vim25"><returnval type="Task">%s</returnval></%sResponse>`
	fmt.Fprintf(w, envelope, fmt.Sprintf(body, method, task.Run().Value, method))
}

func (v *vcenter) steered(w http.ResponseWriter, r *http.Request) {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	var answer interface{} = "done"
	switch query := r.URL.Query(); r.URL.Path {
	case "/peer/requests":
		answer = v.requests
		v.requests = nil
	case "/peer/fault":
		v.faults[query.Get("method")] = query.Get("is")
	case "/peer/deaf":
		v.deaf[query.Get("method")] = true
	case "/peer/lack":
		v.lacking = query.Get("privilege")
	case "/peer/drs":
		for _, one := range simulator.Map.All("ClusterComputeResource") {
			config := one.(*simulator.ClusterComputeResource).ConfigurationEx.(*types.ClusterConfigInfoEx)
			config.DrsConfig.Enabled = types.NewBool(query.Get("is") != "off")
		}
	case "/peer/forget":
		v.sessions, v.pages = map[string]bool{}, map[string][]string{}
	default:
		w.WriteHeader(http.StatusNotFound)
		return
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// furnish names what is there as the tests do: a template `debian-13`, and a folder `tidegate`.
func furnish(client *vim25.Client) error {
	ctx := context.Background()
	template := simulator.Map.Any("VirtualMachine").(*simulator.VirtualMachine)
	name := types.VirtualMachineConfigSpec{Name: "debian-13"}
	if _, err := methods.ReconfigVM_Task(ctx, client, &types.ReconfigVM_Task{This: template.Self, Spec: name}); err != nil {
		return err
	}
	if _, err := methods.MarkAsTemplate(ctx, client, &types.MarkAsTemplate{This: template.Self}); err != nil {
		return err
	}
	_, err := methods.CreateFolder(ctx, client, &types.CreateFolder{This: *template.Parent, Name: "tidegate"})
	return err
}

func main() {
	log.SetFlags(0)
	port, folder, user, password := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	_ = os.Setenv("TMPDIR", folder)
	model := simulator.VPX()
	model.Host, model.Machine, model.Pool, model.Autostart = 0, 1, 1, false
	if err := model.Create(); err != nil {
		log.Fatal(err)
	}
	model.Service.Listen = &url.URL{Host: "127.0.0.1:0", User: url.UserPassword(user, password)}
	model.Service.NewServer()
	client, err := vim25.NewClient(context.Background(), model.Service)
	if err != nil {
		log.Fatal(err)
	}
	if err := furnish(client); err != nil {
		log.Fatal(err)
	}
	machines := &machines{client: client, folder: filepath.Join(folder, "machines"), running: map[string]*running{}}
	if err := machines.listen(); err != nil {
		log.Fatal(err)
	}
	simulator.Map.AddHandler(machines)
	certificate, err := tls.LoadX509KeyPair(filepath.Join(folder, "server.pem"), filepath.Join(folder, "server.key"))
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{
		Handler: &vcenter{
			simulator: model.Service.ServeMux,
			sessions:  map[string]bool{},
			faults:    map[string]string{},
			deaf:      map[string]bool{},
			pages:     map[string][]string{},
		},
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}},
	}
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(server.ServeTLS(listener, "", ""))
}

var _ simulator.RegisterObject = (*machines)(nil)
var _ mo.Reference = (*machines)(nil)
